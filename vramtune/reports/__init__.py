"""What people look at: nouns to tables, text and plots."""
