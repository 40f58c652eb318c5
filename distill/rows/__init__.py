"""What a student reads of its teacher: answers, reasons and distributions, made into training rows."""
