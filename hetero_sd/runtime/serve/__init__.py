"""`run.py --serve`: an HTTP server in OpenAI's form over the models of a bundle."""
