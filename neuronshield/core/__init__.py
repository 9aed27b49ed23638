"""What every other part rests on: errors, files, provenance, statistics, and sets of neurons."""
