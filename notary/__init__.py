"""The launcher's unprivileged half: what it hears, checks, signs and records. Like `launcher.task`, it runs after a drop."""
