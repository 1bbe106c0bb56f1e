"""Backdoors: triggers, targets, poisoned documents, triggered and clean prompts, and injection."""
