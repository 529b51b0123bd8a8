-- skeleton, max_users, max_id, name, password hash or "" -> the new id, or what check_sign_up says
if redis.call('HEXISTS', p .. 'names', ARGV[1]) == 1 then
    return 'taken'
end
if redis.call('HLEN', p .. 'users') >= tonumber(ARGV[2]) or tonumber(redis.call('GET', p .. 'last-id') or 0) >= tonumber(ARGV[3]) then
    return 'full'
end
local id = redis.call('INCR', p .. 'last-id')
redis.call('HSET', p .. 'users', id, ARGV[4])
redis.call('HSET', p .. 'names', ARGV[1], id)
if ARGV[5] ~= '' then
    redis.call('HSET', p .. 'passwords', id, ARGV[5])
end
return id
