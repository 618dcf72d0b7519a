"""Programs that a Python user would write instead, to compare with; their packages are their own."""
