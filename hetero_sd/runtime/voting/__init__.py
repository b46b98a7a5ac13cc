"""Several answers to one prompt, and a vote on what they say."""
