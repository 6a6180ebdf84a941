"""Who rated what: files of ratings, and what is to be recommended from them."""
