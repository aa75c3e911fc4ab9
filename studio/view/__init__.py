"""Figures and sentences that every face shares: matplotlib and text, no widgets."""
