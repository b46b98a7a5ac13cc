"""`hetero-sd compile`: plan, build, bundle; story.py tells it on one screen."""
