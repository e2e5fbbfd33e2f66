"""Real-time user actions in a feed ranker: sequences, training, serving logic and batch jobs, as a library.

It computes and never deploys: the Ray Serve graph lives in `deployments`, which imports this package and is
never imported by it.
"""

__version__ = "0.1.0"
