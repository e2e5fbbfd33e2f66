"""What goes wrong in training; apart from the loop, so that the command line need not load PyTorch to know it."""


class TrainingError(RuntimeError):
    """Training can't go on; the message is for the person at the shell."""
