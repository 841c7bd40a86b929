"""Checking data sets: what is broken, what occurs twice, and what two data sets share. Nothing is changed."""
