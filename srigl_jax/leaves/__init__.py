"""What each leaf of a parameter tree is: a layer, of which axes, or something that stays dense."""
