"""Training steps of dense and of sparse networks, by this project and by rivals, compared."""
