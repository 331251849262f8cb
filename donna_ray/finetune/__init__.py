"""Step 5: distilled blocks put together to a network, and networks finetuned end to end."""
