"""From a segmented patient and a health record to a risk of recurrence."""
