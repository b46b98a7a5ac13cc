"""`hetero-sd compile`: plan, build, bundle; compile.py lists the steps."""
