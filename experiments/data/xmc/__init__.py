"""Examples of few labels among very many."""
