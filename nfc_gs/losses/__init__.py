"""What a render is scored by: one weighted term a file, in any combination."""
