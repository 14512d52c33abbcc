"""Chapter 9: scores with error bars, and the report of a whole run."""
