"""What happens inside a request, without Ray or HTTP: event validation, candidates, blending, models held in memory."""
