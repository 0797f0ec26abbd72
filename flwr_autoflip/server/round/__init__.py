"""One round: nodes asked, replies checked, compared, merged; state in, state out."""
