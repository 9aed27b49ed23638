"""Find: which neurons respond differently to harmful and benign requests."""
