"""Who proposes, and in which shape: every drafter turns running sequences into token trees."""
