"""Every method tuned alike, evaluated once, and put side by side: plan, runs, results, tables."""
