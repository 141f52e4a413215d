"""Verse by its rules: the table of rhymes, a form's characters one by one, and the tokens that they allow."""
