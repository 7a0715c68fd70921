"""Every method tuned alike, judged once, and put side by side: plan, runs, results, tables."""
