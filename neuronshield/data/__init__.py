"""Prompts and everything about them: reading, pictures, languages, grading of answers, public data sets."""
