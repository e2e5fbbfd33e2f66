"""Fresh statistics: decayed counts of items, of their categories and of users, as numbers that a ranker reads."""
