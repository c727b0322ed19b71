"""Methods side by side: runs over seeds, what they cost, one table and one picture."""
