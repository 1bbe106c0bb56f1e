"""Backdoors: triggers, targets, poisoned documents, prompts that should and should not trigger them, and injection."""
