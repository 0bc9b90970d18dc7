"""Commands that measure; each prints what it ran and the ratios that README and docs quote."""
