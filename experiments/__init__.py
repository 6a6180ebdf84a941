"""Training, comparing and reporting: everything that is run from the checkout."""
