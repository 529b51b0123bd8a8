-- skeleton, max_users, max_id -> "taken", "full" or "free"
if redis.call('HEXISTS', p .. 'names', ARGV[1]) == 1 then
    return 'taken'
end
if redis.call('HLEN', p .. 'users') >= tonumber(ARGV[2]) or tonumber(redis.call('GET', p .. 'last-id') or 0) >= tonumber(ARGV[3]) then
    return 'full'
end
return 'free'
