"""How prompts are spread over work in flight."""
