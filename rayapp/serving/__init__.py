"""What happens inside a request, without Ray or HTTP: checks of what arrives, the three stages, the feed over them."""
