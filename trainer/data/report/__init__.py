"""Show what a recipe trains on (``trireme data``), in a terminal or as an HTML page."""
