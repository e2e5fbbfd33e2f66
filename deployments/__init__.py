"""The Ray Serve graph: sequences, candidates and ranker behind one HTTP ingress. Thin classes over `rayapp`."""
