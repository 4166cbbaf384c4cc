"""Who may sign what, when and how much. Pure: values in, decisions out."""
