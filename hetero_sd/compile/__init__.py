"""`hetero-sd compile`: plan, build, bundle; story.py lists the steps."""
