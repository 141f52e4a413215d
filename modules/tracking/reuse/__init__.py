"""Stages that aren't done twice: what decides about a result, what came of it, whether it is sound."""
