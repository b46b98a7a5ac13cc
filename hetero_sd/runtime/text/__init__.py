"""Text in, text out: tokenizer, prompts, streaming."""
