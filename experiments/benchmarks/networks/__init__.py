"""Networks as people have them, in several frameworks: each trains sparsely and is exported."""
