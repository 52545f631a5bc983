"""What finding lines, columns and structure costs, apart from what misread letters cost."""
