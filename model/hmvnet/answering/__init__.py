"""A valid answer to every case, whatever happens: what a challenge wants, and no hospital."""
