"""Class activation maps: where they come from, over which views, and what comparing features adds."""
