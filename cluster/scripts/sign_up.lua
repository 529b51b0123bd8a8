-- skeleton, max_users, max_id, name, password hash or "" -> the new id, or what check_sign_up says
local reason = why_no_sign_up(ARGV[1], ARGV[2], ARGV[3])
if reason then
    return reason
end
local id = redis.call('INCR', p .. 'last-id')
redis.call('HSET', p .. 'users', id, ARGV[4])
redis.call('HSET', p .. 'names', ARGV[1], id)
if ARGV[5] ~= '' then
    redis.call('HSET', p .. 'passwords', id, ARGV[5])
end
return id
