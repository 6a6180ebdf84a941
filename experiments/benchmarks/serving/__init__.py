"""Inference as a server does it: condensed networks beside what people serve with today."""
