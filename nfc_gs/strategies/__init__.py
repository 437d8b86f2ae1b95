"""Who is cloned, split, moved or dropped."""
