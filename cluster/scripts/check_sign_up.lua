-- three looks, max_users, max_id -> "taken", "full" or "free"
return why_no_sign_up({ARGV[1], ARGV[2], ARGV[3]}, ARGV[4], ARGV[5]) or 'free'
