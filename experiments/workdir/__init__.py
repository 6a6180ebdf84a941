"""What a run keeps in its work directory, and who may write there."""
